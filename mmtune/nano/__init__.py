"""The nano base: a tiny language model, a tiny vision tower and the drawn world both were made for."""
