"""Tokenizers of four kinds behind one protocol: byte, SentencePiece, Hugging Face, GPT-2."""

from maxlm.data.tokenizers.loading import load_tokenizer as load_tokenizer
from maxlm.data.tokenizers.protocol import Tokenizer as Tokenizer
from maxlm.data.tokenizers.sentencepiece_training import train_sentencepiece as train_sentencepiece
