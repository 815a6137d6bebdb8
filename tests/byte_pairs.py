"""A small tokenizer of a RoBERTa's kind."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

MARKERS = ["<s>", "<pad>", "</s>", "<unk>"]
VOCAB_SIZE = 300


def write_byte_pairs(folder: Path) -> Path:
    """Byte pairs of a few words, two markers between the texts of a pair; its class is told by the model_type alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=MARKERS, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(["the film is good but its plot was very dull"] * 9, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
