"""Models and data of Hugging Face: the task of the extra ``decentral[hf]``."""
