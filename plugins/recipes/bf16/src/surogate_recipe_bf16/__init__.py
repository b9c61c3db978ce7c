"""The plain precision recipe of surogate: linear layers in the model's own dtype."""
