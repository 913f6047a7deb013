"""From what is asked for to latents: plans, checked before anything is loaded, and the walks that carry them out."""
