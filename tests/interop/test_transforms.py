"""Transforms by small arrays that can be checked by eye."""

import numpy as np

from maxlm.interop.transforms import Alternating, HeadParts, Matrix, Piece, Vector


def test_a_linear_of_theirs_is_out_by_in_and_heads_are_flat():
    theirs = np.arange(12, dtype=np.float32).reshape(4, 3)  # 2 heads of 2 from 3
    piece = Piece((3, 2, 2), 1)
    assert Matrix().shape([piece]) == (4, 3)
    (ours,) = Matrix().to_ours(theirs, [piece])
    assert ours[1, 1, 0] == theirs[2, 1]
    np.testing.assert_array_equal(Matrix().to_theirs([ours], [piece]), theirs)


def test_joint_matrices_are_cut_along_their_outputs():
    theirs = np.arange(20, dtype=np.float32).reshape(2, 10)  # [in, out]: 4, 3 and 3 outputs
    pieces = [Piece((2, 2, 2), 1), Piece((2, 3), 1), Piece((2, 3), 1)]
    joint = Matrix(out_first=False)
    assert joint.shape(pieces) == (2, 10)
    ours = joint.to_ours(theirs, pieces)
    np.testing.assert_array_equal(ours[1], theirs[:, 4:7])
    np.testing.assert_array_equal(ours[2], theirs[:, 7:])
    np.testing.assert_array_equal(joint.to_theirs(ours, pieces), theirs)


def test_pairs_side_by_side_become_halves():
    piece = Piece((1, 1, 4), 1)
    theirs = np.array([[10.0], [20], [11], [21]], np.float32)  # a0 b0 a1 b1
    pairs = Matrix(rope_pairs=True)
    (ours,) = pairs.to_ours(theirs, [piece])
    assert ours.ravel().tolist() == [10, 11, 20, 21]
    np.testing.assert_array_equal(pairs.to_theirs([ours], [piece]), theirs)


def test_gate_and_up_lie_in_turns():
    theirs = np.arange(12, dtype=np.float32).reshape(2, 1, 6)  # 2 experts, 1 → 2 × 3
    pieces = [Piece((2, 1, 3), 0)] * 2
    gate, up = Alternating().to_ours(theirs, pieces)
    assert gate[0].ravel().tolist() == [0, 2, 4] and up[1].ravel().tolist() == [7, 9, 11]
    assert Alternating().shape(pieces) == (2, 1, 6)
    np.testing.assert_array_equal(Alternating().to_theirs([gate, up], pieces), theirs)


def test_each_head_holds_its_part_of_each_of_ours():
    # From 1: 2 heads of a part of 1 and a turned part of 4, whose pairs lie side by side.
    theirs = np.array([[1.0, 10, 20, 11, 21, 2, 30, 40, 31, 41]], np.float32).T
    pieces = [Piece((1, 2, 1), 1), Piece((1, 2, 4), 1)]
    parts = HeadParts(rope_pairs=True)
    assert parts.shape(pieces) == (10, 1)
    plain, turned = parts.to_ours(theirs, pieces)
    assert plain.ravel().tolist() == [1, 2]
    assert turned.reshape(2, 4).tolist() == [[10, 11, 20, 21], [30, 31, 40, 41]]
    np.testing.assert_array_equal(parts.to_theirs([plain, turned], pieces), theirs)
    bias = [Piece((3,), 0), Piece((4,), 0)]  # of a latent and of the key that heads share
    assert parts.shape(bias) == (7,)
    vector = np.array([1.0, 2, 3, 10, 20, 11, 21], np.float32)
    ours = parts.to_ours(vector, bias)
    assert ours[1].tolist() == [10, 11, 20, 21]
    np.testing.assert_array_equal(parts.to_theirs(ours, bias), vector)


def test_an_offset_comes_back_bitwise_after_one_import():
    weights = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    weights[:4] = [0, 1e-30, -1, 5e8]
    vector, piece = Vector(offset=1.0), Piece((10_000,), 0)
    (ours,) = vector.to_ours(weights, [piece])
    (again,) = vector.to_ours(vector.to_theirs([ours], [piece]), [piece])
    np.testing.assert_array_equal(ours, again)
