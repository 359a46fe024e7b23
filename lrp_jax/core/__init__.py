"""What `lrp` is made of. Nothing in here knows how a whole model is explained."""
