"""Operations on a loaded model, each independent of why it is done."""
