"""Speed, apart from the models: each pass gives a plain model's modules another way to compute the same."""
