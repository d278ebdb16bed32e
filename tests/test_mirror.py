"""Tests mirror the package: what a module decides is tested in a file by its name, or it is said where."""

from __future__ import annotations

import ast
from pathlib import Path

from test_imports import MODULES, Module, parsed

TESTS = Path(__file__).resolve().parent
BY_NAME = {path.stem.removeprefix("test_"): path for path in TESTS.rglob("test_*.py")}

# Modules that are tested together, by what they do for their user.
TOGETHER = {
    "integrations/accelerate/fleet.py": "integrations/accelerate/test_launch_config.py",
    "integrations/accelerate/fleet_here.py": "cli/test_launch_commands.py",
    "integrations/accelerate/ready_configs.py": "integrations/accelerate/test_launch_config.py",
    "integrations/diffusers/safe_pipeline.py": "integrations/test_diffusers.py",
    "integrations/llama_cpp": "integrations/test_xllamacpp.py",
    "cli/export_commands.py": "integrations/test_xllamacpp.py",
    "integrations/openvino": "integrations/test_openvino.py",
    "integrations/vllm": "integrations/test_vllm.py",
    "loading/diffusion": "integrations/test_diffusers.py",
    "patching/patch_in_force.py": "patching/test_switch.py",
    "patching/planned_diffusion.py": "integrations/test_diffusers.py",
    "guarding/remedies": "guarding/test_remedies.py",
    "verifying/in_one_dtype.py": "planning/test_as_loaded.py",
    "models/saving/save_in_its_dtype.py": "models/saving/test_saved_dtype.py",
    "decoding/stack_program.py": "decoding/test_decoder_stack.py",
    "kernels/programs": "kernels/programs/test_kernel_program.py",
    "models/forwards/layer_parts.py": "decoding/test_decoder_stack.py",
    "models/forwards/module_forward.py": "models/blocked/test_blocked_forward.py",
    "models/forwards/plain_calls.py": "models/blocked/test_blocked_transforms.py",
    "models/cast_back.py": "guarding/diagnosis/test_taken_back.py",
    "guarding/diagnosis": "guarding/diagnosis/test_unknown_texts.py",
    "guarding/deferred": "accelerator/test_deferred_watch.py",
    "guarding/families": "guarding/test_classify.py",
    "optimizing/forms": "optimizing/forms/test_forms.py",
    "checkpoints/gguf.py": "checkpoints/test_read.py",
    "checkpoints/audit/audit_page.py": "commands/test_audit.py",
    "cli/doctor_command.py": "cli/test_model_commands.py",
    "cli/half_commands.py": "commands/test_rescue.py",
    "cli/whole_texts.py": "cli/test_model_commands.py",
    "rendering/table_as_html.py": "rendering/test_notebook.py",
    "commands/device_page.py": "commands/test_pages.py",
    "commands/plan_page.py": "commands/test_pages.py",
    "commands/rescue_page.py": "commands/test_pages.py",
    "commands/rescue_recipe.py": "publishing/test_share_recipe.py",
    "loading/trials/recipe_proof.py": "publishing/test_share_recipe.py",
    "cli/options.py": "cli/test_model_commands.py",
    "cli/report_command.py": "commands/test_machine_issue.py",
    "cli/talk.py": "commands/test_chat.py",
    "commands/cache_listing.py": "cli/test_cache_commands.py",
    "devices/backend.py": "accelerator/test_missing_functions.py",
    "kernels/attention_row_ir.py": "kernels/test_attention_row.py",
    "kernels/attention_rows_ir.py": "kernels/test_attention_rows.py",
    "kernels/panels_ir.py": "kernels/test_attention_rows.py",
    "models/forwards/gated_forward.py": "models/forwards/test_norm_forward.py",
    "models/forwards/rotary_forward.py": "models/forwards/test_norm_forward.py",
    "kernels/functions_ir.py": "kernels/test_row_product.py",
    "facts/coding.py": "kernels/test_coded_weight.py",
    "kernels/weights/int4_by_torch.py": "kernels/test_coded_product.py",
    "kernels/norm_rows_ir.py": "kernels/test_norm_rows.py",
    "kernels/rotary_ir.py": "kernels/test_rotary.py",
    "kernels/row_product_ir.py": "kernels/test_row_product.py",
    "kernels/column_product_ir.py": "kernels/test_column_product.py",
    "kernels/task_ir.py": "kernels/test_threads.py",
    "kernels/vectors.py": "kernels/test_row_product.py",
    "loading/trials/second_copy.py": "loading/trials/test_float16.py",
    "numerics/scratch.py": "numerics/test_cast_products.py",
    "patching/import_hook.py": "patching/test_run.py",
    "patching/moved_after.py": "accelerator/test_device_maps.py",
    "patching/planned.py": "patching/test_weird_calls.py",
    "training/accelerate_loop.py": "training/test_precision_guard.py",
    "training/judge_error.py": "training/test_precision_guard.py",
    "training/trainer/evaluated_first.py": "training/test_trainer_ranks.py",
    "errors/ranks.py": "errors/test_errors.py",
    "ranks/ddp": "ranks/test_ddp.py",
    "loading/meeting.py": "ranks/test_meeting_of_ranks.py",
    "ranks/one_plan/started.py": "ranks/test_meeting_of_ranks.py",
    "patching/process_group.py": "ranks/test_unlike_ranks.py",
    "patching/script.py": "patching/test_run.py",
    "processes/watchdog.py": "processes/test_watched.py",
    "guarding/shared_steps.py": "ranks/test_tensor_parallel.py",
    "ranks/lockstep.py": "ranks/test_generation.py",
    "ranks/poisoned_values.py": "ranks/test_armed_poison.py",
    "ranks/schedule.py": "ranks/test_ddp.py",
    "planning/candidate_routes.py": "planning/test_matmul_routes.py",
    "publishing/publish_error.py": "publishing/pushing/test_push.py",
    "publishing/release.py": "publishing/pushing/test_push.py",
    "publishing/staging/plain_child.py": "publishing/staging/test_measure.py",
}


def acts(module: Module) -> bool:
    """Whether a module has a public function: nouns alone are tested with what makes them."""
    if module.path.name in ("__init__.py", "sitecustomize.py"):
        return False
    body = parsed(module.path).body
    return any(isinstance(node, ast.FunctionDef) and not node.name.startswith("_") for node in body)


def is_tested(module: Module) -> bool:
    """Whether there is a test file by its name, or one that is named here."""
    if module.path.stem in BY_NAME:
        return True
    places = [str(module), "/".join(module.parts[:-1])]
    together = [TESTS / TOGETHER[place] for place in places if place in TOGETHER]
    return bool(together) and all(path.is_file() for path in together)


def test_every_module_has_its_tests() -> None:
    """Every module that acts has a test file by its name, or one that is named here."""
    assert not [str(module) for module in MODULES if acts(module) and not is_tested(module)]


def test_no_place_is_named_in_vain() -> None:
    """What is named here exists, and has no test file of its own."""
    for place in TOGETHER:
        modules = [one for one in MODULES if str(one) == place or "/".join(one.parts[:-1]) == place]
        assert any(acts(one) and one.path.stem not in BY_NAME for one in modules), place


def test_nothing_is_tested_through_an_underscore() -> None:
    """Tests import public names of our modules: what is private may change without them."""
    assert not [
        f"{path.relative_to(TESTS)}: {alias.name}"
        for path in sorted(TESTS.rglob("test_*.py"))
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("safe_dtype")
        for alias in node.names
        if alias.name.startswith("_") and alias.name != "__version__"
    ]
