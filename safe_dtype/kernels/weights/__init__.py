"""Linear weights that are held in fewer bits than they were saved in, and the products by them."""
