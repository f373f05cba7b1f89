"""Ahead of time: every kernel of a denoiser as PTX and cubin for GPUs that are not here."""
