"""CLINC150: 150 intents in 10 domains and queries out of scope (Larson et al. 2019, EMNLP, CC BY 3.0)."""

import json
from pathlib import Path
from typing import Any, Literal

from lora_lightning.datamodules.hub import hub_table, load_hub_dataset
from lora_lightning.datamodules.intents import OUT_OF_SCOPE, IntentDataModule, Pairs
from lora_lightning.datamodules.queries import check_texts
from lora_lightning.errors import DataError, suggest_names
from lora_lightning.runs.tables import check_characters, decode_text, parse_json

HUB_DATASET = "clinc/clinc_oos"
HUB_CONFIG = {"small": "small", "imbalanced": "imbalanced", "oos_plus": "plus"}  # the hub has no `full`
RELEASE_KEYS = {"train": ("train", "oos_train"), "val": ("val", "oos_val"), "test": ("test", "oos_test")}

Parts = dict[str, dict[str, Pairs]]  # rows by split and by where they stand, for messages

# Table 1 of the paper: fifteen intents in each domain.
INTENTS_OF_DOMAIN = {
    "auto_and_commute": (
        "current_location directions distance gas gas_type jump_start last_maintenance mpg oil_change_how "
        "oil_change_when schedule_maintenance tire_change tire_pressure traffic uber"
    ),
    "banking": (
        "account_blocked balance bill_balance bill_due freeze_account interest_rate min_payment order_checks pay_bill "
        "pin_change report_fraud routing spending_history transactions transfer"
    ),
    "credit_cards": (
        "application_status apr card_declined credit_limit credit_limit_change credit_score damaged_card "
        "expiration_date improve_credit_score international_fees new_card redeem_rewards replacement_card_duration "
        "report_lost_card rewards_balance"
    ),
    "home": (
        "calendar calendar_update next_song order order_status play_music reminder reminder_update shopping_list "
        "shopping_list_update smart_home todo_list todo_list_update update_playlist what_song"
    ),
    "kitchen_and_dining": (
        "accept_reservations calories cancel_reservation confirm_reservation cook_time food_last how_busy "
        "ingredient_substitution ingredients_list meal_suggestion nutrition_info recipe restaurant_reservation "
        "restaurant_reviews restaurant_suggestion"
    ),
    "meta": (
        "cancel change_accent change_ai_name change_language change_speed change_user_name change_volume maybe no "
        "repeat reset_settings sync_device user_name whisper_mode yes"
    ),
    "small_talk": (
        "are_you_a_bot do_you_have_pets fun_fact goodbye greeting how_old_are_you meaning_of_life tell_joke thank_you "
        "what_are_your_hobbies what_can_i_ask_you what_is_your_name where_are_you_from who_do_you_work_for who_made_you"
    ),
    "travel": (
        "book_flight book_hotel car_rental carry_on exchange_rate flight_status international_visa lost_luggage "
        "plug_type timezone translate travel_alert travel_notification travel_suggestion vaccines"
    ),
    "utility": (
        "alarm calculator date definition find_phone flip_coin make_call measurement_conversion roll_dice "
        "share_location spelling text time timer weather"
    ),
    "work": (
        "direct_deposit income insurance insurance_change meeting_schedule next_holiday payday pto_balance pto_request "
        "pto_request_status pto_used rollover_401k schedule_meeting taxes w2"
    ),
}


class Clinc150DataModule(IntentDataModule):
    """CLINC150 from the original JSON release, or from the hub's `clinc/clinc_oos`.

    Args:
        data_dir: Folder with the release's `data_<variant>.json`; without it, the data is read from the hub.
        variant: `full`, `small` (50 training queries per intent), `imbalanced`, or `oos_plus` (250 out-of-scope
            training queries). The hub has all but `full`.
        oos_as_class: Whether out-of-scope queries are a class of their own, which is learnt from the training
            queries. Otherwise they are not used for training, and only a threshold on a score detects them.
        backbone: The model whose tokenizer is used; set automatically from `model.backbone`.
        batch_size: Training rows per step and process.
        eval_batch_size: Rows per step and process in validation, test and prediction.
        max_length: Maximum number of tokens per text; longer texts are truncated.
        predict_file: Text file with one query per line for `predict`, or `-` for standard input.
        cache_dir: Folder for tokenized data; by default `~/.cache/lora_lightning`, or below `$XDG_CACHE_HOME`.
        num_workers: Worker processes that build batches; 0 is fastest for short texts.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        variant: Literal["full", "small", "imbalanced", "oos_plus"] = "full",
        oos_as_class: bool = True,
        backbone: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        max_length: int = 64,
        predict_file: str | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            oos_as_class=oos_as_class,
            backbone=backbone,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            max_length=max_length,
            predict_file=predict_file,
            cache_dir=cache_dir,
            num_workers=num_workers,
        )
        self.data_dir = data_dir
        self.variant = variant

    @property
    def hub_dataset(self) -> str | None:
        """The data set's id on the hub, also of its files in a folder."""
        return HUB_DATASET

    def load_pairs(self) -> dict[str, Pairs]:
        """Reads the release or the hub and checks every row."""
        parts = self._from_hub() if self.data_dir is None else self._from_release(Path(self.data_dir).expanduser())
        known = {intent for rows in parts["train"].values() for _, intent in rows} | {OUT_OF_SCOPE}
        for rows_of in parts.values():
            for name, rows in rows_of.items():
                check_texts((text for text, _ in rows), name, "row")
                for number, (_, intent) in enumerate(rows, start=1):
                    if intent not in known:
                        msg = (
                            f"{name}, row {number}: the intent {intent!r} never occurs in train; "
                            f"{suggest_names(intent, known)}"
                        )
                        raise DataError(msg)
        return {split: [pair for rows in rows_of.values() for pair in rows] for split, rows_of in parts.items()}

    def domain_of_intent(self) -> dict[str, str]:
        """The paper's ten domains."""
        return {intent: domain for domain, intents in INTENTS_OF_DOMAIN.items() for intent in intents.split()}

    def _from_release(self, folder: Path) -> Parts:
        path = folder / f"data_{self.variant}.json"
        try:
            raw = path.read_bytes()
        except OSError as error:
            there = ", ".join(sorted(file.name for file in folder.glob("data_*.json"))) or "no data_*.json"
            msg = f"--data.data_dir: {path} cannot be read; the folder {folder} has {there}."
            raise DataError(msg) from error
        try:
            content = parse_json(decode_text(raw, str(path)))
        except (ValueError, RecursionError) as error:
            msg = f"{path} is not JSON ({error}); download the original release again."
            raise DataError(msg) from error
        absent = [key for keys in RELEASE_KEYS.values() for key in keys if not _has_rows(content, key)]
        if absent:
            msg = f"{path} has no list {absent[0]!r}; the release holds {', '.join(sum(RELEASE_KEYS.values(), ()))}."
            raise DataError(msg)
        return {
            split: {f"{path}, {key}": _checked_rows(content[key], f"{path}, {key}") for key in keys}
            for split, keys in RELEASE_KEYS.items()
        }

    def _from_hub(self) -> Parts:
        if self.variant not in HUB_CONFIG:
            msg = (
                f"the hub has no variant {self.variant!r} of CLINC150, only {', '.join(HUB_CONFIG)}; choose one of "
                "them, or set --data.data_dir to the original JSON release."
            )
            raise DataError(msg)
        remedy = (
            f"without network set --data.data_dir to a folder with the original release's data_{self.variant}.json."
        )
        splits = load_hub_dataset(HUB_DATASET, HUB_CONFIG[self.variant], remedy)
        parts: Parts = {}
        for split, hub_split in (("train", "train"), ("val", "validation"), ("test", "test")):
            table = hub_table(splits, HUB_DATASET, hub_split, ["text", "intent"])
            parts[split] = {table.name: list(zip(table.column("text"), table.column("intent"), strict=True))}
        return parts


def _has_rows(content: Any, key: str) -> bool:
    return isinstance(content, dict) and isinstance(content.get(key), list) and bool(content[key])


def _checked_rows(rows: list[Any], name: str) -> Pairs:
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row, list) and [type(part) for part in row] == [str, str] and row[1].strip()):
            msg = f"{name}, row {number}: expected [text, intent], found {json.dumps(row)[:80]}."
            raise DataError(msg)
        check_characters(row, f"{name}, row {number}")
    return [(text, intent) for text, intent in rows]
