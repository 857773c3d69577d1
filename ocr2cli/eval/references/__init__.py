"""What ours is compared with, one module each: transformers, llama.cpp, recorded scores."""
