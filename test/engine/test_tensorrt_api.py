"""Every name of TensorRT that the code uses exists in each flavour and version that it claims.

The names come from the source by its syntax tree, the lists from the bindings themselves.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rgbd_fusion_seg import engine, engine_building

MODULES = sorted(
    path
    for package in (engine, engine_building)
    for path in Path(package.__file__).parent.glob('*.py')
)
BUILDERS = ('tensorrt 11.4.0', 'tensorrt 10.16.1', 'tensorrt 10.3.0 (JetPack 6.2)')
RTX = ('tensorrt_rtx 1.7.1',)
LEAN = ('tensorrt_lean 11.4.0',)
CLAIMED = {
    'tensorrt_build.py': BUILDERS + RTX,
    'build_progress.py': BUILDERS + RTX,
    'tensorrt.py': BUILDERS + RTX + LEAN,
    'tensorrt_bindings.py': BUILDERS + RTX + LEAN,
    'tensorrt_execution.py': BUILDERS + RTX + LEAN,
    'tensorrt_rtx.py': RTX,
}
"""Where a module runs; one that is not here may use no name of TensorRT."""
GUARDED = {
    ('tensorrt_build.py', '_configure_rtx'): RTX,
    ('flavours.py', 'can_build'): BUILDERS + RTX,
    ('flavours.py', 'import_flavour'): (),
}
"""Functions that are for some flavours only, or ask what every module has."""
MEMBERS_OF = {
    'tensorrt_build.py': {
        'builder': 'Builder',
        'network': 'INetworkDefinition',
        'parser': 'OnnxParser',
        'config': 'IBuilderConfig',
        'profile': 'IOptimizationProfile',
        'tensor': 'ITensor',
        'cache': 'ITimingCache',
    },
    'tensorrt.py': {'runtime': 'Runtime', 'engine': 'ICudaEngine'},
    'tensorrt_execution.py': {'self._context.context': 'IExecutionContext'},
    'tensorrt_rtx.py': {
        'runtime': 'Runtime',
        'engine': 'ICudaEngine',
        'config': 'IRuntimeConfig',
        'cache': 'IRuntimeCache',
        'made.context': 'IExecutionContext',
    },
}
"""Module -> name of a variable -> TensorRT's class of what it holds."""
IN_ONE_FUNCTION = {('tensorrt_build.py', '_refusal'): {'error': 'ParserError'}}


def uses(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the function and the parts of each dotted name that begins with a variable's name."""

    def visit(node: ast.AST, function: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.Attribute):
            parts = [node.attr]
            inner = node.value
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name):
                yield function, (inner.id, *reversed(parts))
                return
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            arguments = node.args
            if node.func.id == 'hasattr' and ast.unparse(arguments[0]).endswith('trt'):
                yield function, ('trt', ast.literal_eval(arguments[1]))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    yield from visit(ast.parse(path.read_text(encoding='utf-8')), '')


def from_trt(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return what follows ``trt`` in a dotted name, such as that of ``flavour.trt.Builder``."""
    return parts[parts.index('trt') + 1 :] if 'trt' in parts else ()


def missing(api: dict[str, list[str]], names: tuple[str, ...]) -> bool:
    """Return whether a class, or its member, is not in a list; members of Python itself are."""
    if names[0].startswith('__'):
        return False
    if names[0] not in api:
        return True
    return len(names) > 1 and not names[1].startswith('__') and names[1] not in api[names[0]]


@pytest.fixture(scope='module')
def apis(goldens_dir) -> dict[str, dict[str, list[str]]]:
    return json.loads((goldens_dir / 'tensorrt_api.json').read_text())


def absent_names(apis, path: Path) -> list[str]:
    found = []
    for function, parts in uses(path):
        flavours = GUARDED.get((path.name, function), CLAIMED.get(path.name, BUILDERS))
        names = from_trt(parts)
        classes = MEMBERS_OF.get(path.name, {}) | IN_ONE_FUNCTION.get((path.name, function), {})
        for variable, class_name in classes.items():
            count = variable.count('.') + 1
            if '.'.join(parts[:count]) == variable and len(parts) > count:
                names = (class_name, parts[count])
        if names:
            found += [
                f'{path.name}, {function}: {".".join(names)} is not in {flavour}'
                for flavour in flavours
                if missing(apis[flavour], names)
            ]
    return found


def path_of(module: str) -> Path:
    (path,) = [path for path in MODULES if path.name == module]
    return path


@pytest.mark.parametrize('path', MODULES, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_names_exist_where_they_are_used(apis, path):
    used = [names for _, parts in uses(path) if (names := from_trt(parts))]
    assert path.name in CLAIMED or path.name == 'flavours.py' or not used
    assert absent_names(apis, path) == []


@pytest.mark.parametrize(
    ('module', 'name'),
    [
        ('tensorrt_build.py', 'Builder'),
        ('tensorrt_build.py', 'NetworkDefinitionCreationFlag.STRONGLY_TYPED'),
        ('tensorrt.py', 'Runtime'),
        ('tensorrt_rtx.py', 'EngineValidity.INVALID'),
        ('flavours.py', 'OnnxParser'),
    ],
)
def test_names_are_found_in_the_source(module, name):
    assert name in {'.'.join(from_trt(parts)) for _, parts in uses(path_of(module))}


@pytest.mark.parametrize('module', MEMBERS_OF)
def test_variables_are_found_in_the_source(module):
    """A variable with another name would no longer be looked at."""
    dotted = ['.'.join(parts) for _, parts in uses(path_of(module))]
    for variable in MEMBERS_OF[module]:
        assert any(name.startswith(f'{variable}.') for name in dotted), variable


def test_names_that_only_some_have_are_noticed(apis, tmp_path):
    """What TensorRT 11 dropped, what RTX alone has, and what the lean runtime lacks."""
    path = tmp_path / 'tensorrt_build.py'
    path.write_text(
        'def f(trt, config):\n'
        '    config.set_flag(trt.BuilderFlag.FP16)\n'
        '    config.set_compute_capability(1, 0)\n'
        '    return trt.ComputeCapability.SM86\n'
    )
    assert absent_names(apis, path) == [
        *(
            f'tensorrt_build.py, f: BuilderFlag.FP16 is not in {flavour}'
            for flavour in ('tensorrt 11.4.0', *RTX)
        ),
        *(
            f'tensorrt_build.py, f: IBuilderConfig.set_compute_capability is not in {flavour}'
            for flavour in BUILDERS
        ),
        *(
            f'tensorrt_build.py, f: ComputeCapability.SM86 is not in {flavour}'
            for flavour in BUILDERS
        ),
    ]
    path = tmp_path / 'tensorrt.py'
    path.write_text('def f(flavour):\n    return flavour.trt.Builder\n')
    assert absent_names(apis, path) == [f'tensorrt.py, f: Builder is not in {LEAN[0]}']
