"""Value and gradient of NT-Xent (with VRN) in one go: how each is computed. ``autograd`` chooses and attaches autograd.

Every routine takes detached tensors and returns the value and, where wanted, the gradient by the raw rows of both views,
(2, N, D) in at least fp32. VRN's pairs must be among the negatives. Nothing of size N x N outlives a call.

The identities they share, with similarities P between unit rows z, logits ``x = P / t``, ``s_a`` the sum of ``exp(x_ab)`` over
the negatives of anchor a, and ``den_a = s_a [+ exp(x_a,pos)]``:

- loss of a = ``softplus(y_a)`` with ``y_a = log s_a - x_a,pos``; ``y_a`` itself where decoupled;
- its derivative by ``x_ab`` is ``exp(x_ab) / den_a``, by ``x_a,pos`` it is ``-sigmoid(y_a)``; -1 where decoupled.

P is symmetric, so that row b's share of the gradient of pair (a, b) is known as soon as row a's is: with
``w_ab = exp(x_ab) (1/den_a + 1/den_b)``, the gradient by row a is ``sum_b w_ab z_b / (2 N t)``.
"""
