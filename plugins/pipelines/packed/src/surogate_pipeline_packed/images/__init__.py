"""Images in conversations: found in rows, counted as tokens, kept with the tokens, given to the model.

source   an image as a row names it → its bytes → pixels
boxes    coordinates in an image as text
sight    messages with images → messages for the chat template, and samples with an image's tokens in them
table    images beside the tokens of a part and of a corpus
borders  where samples with images may be cut: an image is used whole or not at all
"""
