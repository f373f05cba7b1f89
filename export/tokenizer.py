"""A T5 sentencepiece model -> tokenizer.json, with the ids that sentencepiece itself gives."""

import json
from pathlib import Path
from typing import Any

from framert.runtime.errors import CheckpointError

SPACE = "▁"  # sentencepiece's visible space
NMT_NFKC = "nmt_nfkc"  # T5's normalisation: NFKC, tidied spaces and control characters, and KEPT left alone
KEPT, STAND_IN = "\uff5e", "\ufdd0"  # full-width tilde; a code point that no text uses
UNIGRAM, USER_DEFINED = 1, 4  # model and piece types of sentencepiece's own format


def write_tokenizer(folder: Path, output: Path) -> None:
    """Write tokenizer.json for the checkpoint folder ``tokenizer/``.

    Encoding ends with the end token; text between added tokens is encoded on its own, each part with
    sentencepiece's leading space, as the published model saw it.

    Raises: CheckpointError if spiece.model is missing, damaged or not of the kind T5 uses.
    """
    build_tokenizer(folder).save(str(output), pretty=False)


def build_tokenizer(folder: Path) -> Any:
    """Return the ``tokenizers.Tokenizer`` of the folder; see ``write_tokenizer``."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors

    proto = _read_model(folder / "spiece.model")
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    trainer, spec = proto.trainer_spec, proto.normalizer_spec
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback))
    steps: list[Any] = []
    if spec.name == NMT_NFKC:
        # Precompiled maps single characters as sentencepiece does, but composes only pairs and drops a mark after a
        # mapped character; so what can be composed is composed before it.
        steps += [normalizers.Replace(KEPT, STAND_IN), normalizers.NFKC(), normalizers.Replace(STAND_IN, KEPT)]
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" +"), " "), normalizers.Replace(Regex(r"\A | \z"), "")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE)
    for token_id, fields in sorted(_added_tokens(folder, len(pieces)).items()):
        tokenizer.add_special_tokens([AddedToken(**{"normalized": False, **fields, "special": True})])
        if tokenizer.token_to_id(fields["content"]) != token_id:
            raise CheckpointError(
                f"{folder} gives {fields['content']} the id {token_id}, which does not follow the {len(pieces)} pieces "
                "of spiece.model without a gap; copy all tokenizer files of one checkpoint"
            )
    end = proto.pieces[trainer.eos_id].piece
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, trainer.eos_id)])
    return tokenizer


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json, empty where there is none. Raises: CheckpointError if it is damaged."""
    return _read_json(folder / "tokenizer_config.json")


def _read_model(file: Path) -> Any:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing; copy the tokenizer folder of the published checkpoint") from error
    except DecodeError as error:
        raise CheckpointError(f"{file} is damaged; download it again") from error
    kinds = {piece.type for piece in proto.pieces}
    if proto.trainer_spec.model_type != UNIGRAM or USER_DEFINED in kinds or not proto.pieces:
        raise CheckpointError(f"{file} is not a unigram model without own symbols; T5's tokenizer is, so use that one")
    if not 0 <= proto.trainer_spec.eos_id < len(proto.pieces):
        raise CheckpointError(f"{file} has no end token; T5's tokenizer has one, so use that one")
    return proto


def _added_tokens(folder: Path, pieces: int) -> dict[int, dict[str, Any]]:
    """Return AddedToken fields by id: as the configuration says, else T5's extra ids, counted down to the last id."""
    config = read_tokenizer_config(folder)
    tokens = {int(token_id): dict(fields) for token_id, fields in config.get("added_tokens_decoder", {}).items()}
    for content, token_id in _read_json(folder / "added_tokens.json").items():
        tokens.setdefault(int(token_id), {"content": content})
    if not tokens:
        extra = int(config.get("extra_ids", 0))
        tokens = {pieces + extra - 1 - index: {"content": f"<extra_id_{index}>"} for index in range(extra)}
    return tokens


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{file} cannot be read ({error}); download it again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} is not a JSON object; download it again")
    return data
