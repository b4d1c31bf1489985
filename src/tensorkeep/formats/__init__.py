"""Other people's files: readers that find the tensors in them."""
