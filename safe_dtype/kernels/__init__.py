"""Products of our own, compiled by LLVM for the very CPU they run on; nothing of it is there without llvmlite."""
