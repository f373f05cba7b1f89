"""OneDiffusion: frames with their own noise levels, given ones clean."""
