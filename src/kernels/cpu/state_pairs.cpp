#include "src/kernels/cpu/state_pairs.hpp"

namespace weft::cpu {

// ---- One decay a token

template <class T>
void ScalarPairs<T>::scores(const ChunkDecays<T>& decays, const Chunk& chunk, const Rows<T>& q,
                            const Rows<T>& k, int64_t key_dim, T scale, T* scores) {
  const int64_t n = chunk.count;
  gemm(Gemm<T>{false, true, n, n, key_dim, scale, q.row(chunk.begin), q.step, k.row(chunk.begin),
               k.step, 0, scores, kStateChunk});
  for (int64_t r = 0; r < n; ++r) {
    T* row = scores + r * kStateChunk;
    decays.to(r + 1, decay_);
    for (int64_t j = 0; j <= r; ++j) row[j] *= decay_[j];
    std::fill(row + r + 1, row + n, T(0));
  }
}

template <class T>
void ScalarPairs<T>::gradients(const ChunkDecays<T>& decays, const Chunk& chunk,
                               const PairOperands<T>& operands, T* scores, T* products,
                               Crossings<T>* crossings) {
  const auto& [q, k, dq, dk, key_dim, scale] = operands;
  const int64_t n = chunk.count, begin = chunk.begin;
  this->scores(decays, chunk, q, k, key_dim, scale, scores);
  if (crossings) {
    crossings->add_pairs([&](int64_t r, int64_t j) {
      return scores[r * kStateChunk + j] * products[r * kStateChunk + j];
    });
  }
  for (int64_t r = 0; r < n; ++r) {  // products become the gradient of q k^T
    T* row = products + r * kStateChunk;
    decays.to(r + 1, decay_);
    for (int64_t j = 0; j <= r; ++j) row[j] *= scale * decay_[j];
    std::fill(row + r + 1, row + n, T(0));
  }
  gemm(Gemm<T>{false, false, n, key_dim, n, 1, products, kStateChunk, k.row(begin), k.step, 0,
               dq.row(begin), dq.step});
  gemm(Gemm<T>{true, false, n, key_dim, n, 1, products, kStateChunk, q.row(begin), q.step, 0,
               dk.row(begin), dk.step});
}

// ---- One decay a row of the state

template <class T>
VectorPairs<T>::VectorPairs(Slab& slab, int64_t key_dim)
    : q_decay_(slab.take<T>(kBlock * key_dim)),
      k_decay_(slab.take<T>(kStateChunk * key_dim)),
      decayed_q_(slab.take<T>(kBlock * key_dim)),
      decayed_k_(slab.take<T>(kStateChunk * key_dim)),
      part_(slab.take<T>(kStateChunk * key_dim)),
      pair_(slab.take<T>(key_dim)) {}

template <class T>
void VectorPairs<T>::load_block(const ChunkDecays<T>& decays, const Chunk& chunk, const Rows<T>& q,
                                const Rows<T>& k, int64_t key_dim, Block block) {
  const int64_t n = block.end - block.begin;
  for (int64_t r = 0; r < n; ++r) {
    decays.between(block.begin + r + 1, block.begin, q_decay_ + r * key_dim);
  }
  for (int64_t j = 0; j < block.begin; ++j) {
    decays.between(block.begin, j + 1, k_decay_ + j * key_dim);
  }
  scale_rows(n, key_dim, T(1), q_decay_, key_dim, q.row(chunk.begin + block.begin), q.step,
             decayed_q_);
  scale_rows(block.begin, key_dim, T(1), k_decay_, key_dim, k.row(chunk.begin), k.step, decayed_k_);
}

/// Scores of a block against all tokens before it.
template <class T>
void VectorPairs<T>::score_before(Block block, int64_t key_dim, T scale, T* scores) const {
  gemm(Gemm<T>{false, true, block.end - block.begin, block.begin, key_dim, scale, decayed_q_,
               key_dim, decayed_k_, key_dim, 0, scores + block.begin * kStateChunk, kStateChunk});
}

template <class T>
void VectorPairs<T>::scores(const ChunkDecays<T>& decays, const Chunk& chunk, const Rows<T>& q,
                            const Rows<T>& k, int64_t key_dim, T scale, T* scores) {
  for (int64_t begin = 0; begin < chunk.count; begin += kBlock) {
    const Block block{begin, std::min(begin + kBlock, chunk.count)};
    load_block(decays, chunk, q, k, key_dim, block);
    score_before(block, key_dim, scale, scores);
    for (int64_t r = block.begin; r < block.end; ++r) {
      T* row = scores + r * kStateChunk;
      const T* q_row = q.row(chunk.begin + r);
      for (int64_t j = block.begin; j <= r; ++j) {
        const T* k_row = k.row(chunk.begin + j);
        decays.between(r + 1, j + 1, pair_);
        row[j] =
            scale * sum_of<T>(key_dim, [&](int64_t d) { return q_row[d] * pair_[d] * k_row[d]; });
      }
      std::fill(row + r + 1, row + chunk.count, T(0));
    }
  }
}

template <class T>
void VectorPairs<T>::gradients_before(Block block, const Chunk& chunk,
                                      const PairOperands<T>& operands, const T* products) {
  const auto& [q, k, dq, dk, key_dim, scale] = operands;
  const int64_t n = block.end - block.begin, before = block.begin;
  if (before == 0) return;
  const T* rows = products + block.begin * kStateChunk;
  gemm(Gemm<T>{false, false, n, key_dim, before, scale, rows, kStateChunk, decayed_k_, key_dim, 0,
               part_, key_dim});
  for (int64_t r = 0; r < n; ++r) {
    T* out = dq.row(chunk.begin + block.begin + r);
    for (int64_t d = 0; d < key_dim; ++d) {
      out[d] += q_decay_[r * key_dim + d] * part_[r * key_dim + d];
    }
  }
  gemm(Gemm<T>{true, false, before, key_dim, n, scale, rows, kStateChunk, decayed_q_, key_dim, 0,
               part_, key_dim});
  for (int64_t j = 0; j < before; ++j) {
    T* out = dk.row(chunk.begin + j);
    for (int64_t d = 0; d < key_dim; ++d) {
      out[d] += k_decay_[j * key_dim + d] * part_[j * key_dim + d];
    }
  }
}

/// Pairs of different tokens of one block, and the score of every token with itself.
template <class T>
void VectorPairs<T>::gradients_inside(const ChunkDecays<T>& decays, Block block, const Chunk& chunk,
                                      const PairOperands<T>& operands, T* scores,
                                      const T* products) {
  const auto& [q, k, dq, dk, key_dim, scale] = operands;
  for (int64_t r = block.begin; r < block.end; ++r) {
    const T* q_row = q.row(chunk.begin + r);
    T* dq_row = dq.row(chunk.begin + r);
    for (int64_t j = block.begin; j <= r; ++j) {
      const T* k_row = k.row(chunk.begin + j);
      T* dk_row = dk.row(chunk.begin + j);
      const T dscore = r == j ? T(0) : scale * products[r * kStateChunk + j];
      decays.between(r + 1, j + 1, pair_);
      for (int64_t d = 0; d < key_dim; ++d) {
        dq_row[d] += dscore * pair_[d] * k_row[d];
        dk_row[d] += dscore * pair_[d] * q_row[d];
      }
      scores[r * kStateChunk + j] =
          scale * sum_of<T>(key_dim, [&](int64_t d) { return q_row[d] * pair_[d] * k_row[d]; });
    }
    std::fill(scores + r * kStateChunk + r + 1, scores + r * kStateChunk + chunk.count, T(0));
  }
}

/// Pairs that cross token i are those that are read from i on (their sum is q o dq) less those that
/// are also written there (k o dk). dq and dk hold pairs of different tokens only: a token's pair
/// with itself does not decay, and where decays are strong it would drown all others.
template <class T>
void VectorPairs<T>::cross(const ChunkDecays<T>& decays, const Chunk& chunk,
                           const PairOperands<T>& operands, Crossings<T>& crossings) const {
  const auto& [q, k, dq, dk, key_dim, scale] = operands;
  for (int64_t d = 0; d < key_dim; ++d) {
    double sum = 0;
    for (int64_t t = chunk.count - 1; t >= 0; --t) {
      const int64_t row = chunk.begin + t;
      sum += static_cast<double>(q.row(row)[d]) * dq.row(row)[d] -
             static_cast<double>(k.row(row)[d]) * dk.row(row)[d];
      if (t == 0 || decays.resets(t, d)) sum = 0;  // no pair crosses: what is left is rounding
      crossings.row(t)[d] += sum;
    }
  }
}

template <class T>
void VectorPairs<T>::gradients(const ChunkDecays<T>& decays, const Chunk& chunk,
                               const PairOperands<T>& operands, T* scores, T* products,
                               Crossings<T>* crossings) {
  const auto& [q, k, dq, dk, key_dim, scale] = operands;
  for (int64_t t = chunk.begin; t < chunk.begin + chunk.count; ++t) {
    std::fill_n(dq.row(t), key_dim, T(0));
    std::fill_n(dk.row(t), key_dim, T(0));
  }
  for (int64_t begin = 0; begin < chunk.count; begin += kBlock) {
    const Block block{begin, std::min(begin + kBlock, chunk.count)};
    load_block(decays, chunk, q, k, key_dim, block);
    score_before(block, key_dim, scale, scores);
    gradients_before(block, chunk, operands, products);
    gradients_inside(decays, block, chunk, operands, scores, products);
  }
  if (crossings) cross(decays, chunk, operands, *crossings);
  for (int64_t t = 0; t < chunk.count; ++t) {  // the pairs of a token with itself
    const int64_t row = chunk.begin + t;
    const T dscore = scale * products[t * kStateChunk + t];
    for (int64_t d = 0; d < key_dim; ++d) {
      dq.row(row)[d] += dscore * k.row(row)[d];
      dk.row(row)[d] += dscore * q.row(row)[d];
    }
  }
}

template class ScalarPairs<float>;
template class ScalarPairs<double>;
template class VectorPairs<float>;
template class VectorPairs<double>;

}  // namespace weft::cpu
