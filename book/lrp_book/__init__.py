"""What the book needs and an installed library does not: data sets, networks, training and pretrained weights."""
