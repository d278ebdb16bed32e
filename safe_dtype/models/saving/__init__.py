"""The dtype that models are saved in, and the calls that save them."""
