import pytest

pytest.importorskip('torch')

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.translation.streams import Stream, grouped, make_streams


@pytest.mark.parametrize(
    ('inputs', 'targets', 'expected'),
    [
        (['shade', 'texture'], ['rgb'], ['shade to rgb', 'texture to rgb']),
        (['rgb'], ['normal', 'depth'], ['rgb to normal', 'rgb to depth']),
        (
            ['rgb', 'depth'],
            ['normal', 'shade'],
            ['rgb to normal', 'depth to normal', 'rgb to shade', 'depth to shade'],
        ),
        (  # the six flows of TPAMI's Fig. 1 (b)
            ['rgb', 'shade', 'edge'],
            ['rgb', 'shade', 'edge'],
            [
                'shade to rgb', 'edge to rgb', 'rgb to shade', 'edge to shade', 'rgb to edge',
                'shade to edge',
            ],
        ),
    ],
)  # fmt: skip
def test_the_four_scenarios_are_streams(inputs, targets, expected):
    assert [str(stream) for stream in make_streams(inputs, targets)] == expected


def test_streams_are_grouped_by_what_they_have_in_common():
    streams = make_streams(['rgb', 'depth'], ['normal', 'rgb'])
    assert grouped(streams, 'target') == {'normal': [0, 1], 'rgb': [2]}
    assert grouped(streams, 'input') == {'rgb': [0], 'depth': [1, 2]}
    assert streams[2] == Stream('depth', 'rgb')


@pytest.mark.parametrize(
    ('inputs', 'targets', 'match'),
    [
        ([], ['rgb'], 'inputs must be one or more'),
        (['rgb'], [], 'targets must be one or more'),
        (['rgb', 'rgb'], ['depth'], r"inputs must be .* not \['rgb', 'rgb'\]"),
        (['rgb'], ['rgb'], 'the target rgb has no input but itself'),
        (['rgb'], ['depth', 'rgb'], 'the target rgb has no input but itself'),
    ],
)
def test_domains_that_make_no_streams_are_refused(inputs, targets, match):
    with pytest.raises(InputError, match=match):
        make_streams(inputs, targets)
