"""A request as a file: every table of every step, so that a program without Python needs graphs and this file alone."""
