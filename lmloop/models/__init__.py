"""Language models: hidden states, a head, decoding with a cache."""
