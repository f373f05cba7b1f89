"""UniVG: what is given lies beside the noisy latent on channels, and text tokens run through the model with it."""
