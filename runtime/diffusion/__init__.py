"""Making pictures: schedulers, guidance, noise, and the chain of adapter, UNet and VAE."""
