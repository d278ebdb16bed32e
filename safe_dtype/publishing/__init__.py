"""Put what was made and verified on the Hub: staged, checked, in one commit, and read back."""
