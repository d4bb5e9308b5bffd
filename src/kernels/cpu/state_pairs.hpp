// What the tokens of one chunk do to each other in the diagonal kinds: scores
//   s_rj = scale sum_k q_rk decay_k(r, j) k_jk    for j <= r, 0 above,
// and their gradients. With one decay a token the decays are a mask on a matrix product; with one a
// row of the state they stand inside the sum.
#pragma once

#include "src/kernels/cpu/state_chunk.hpp"

namespace weft::cpu {

/// One head's operands of a backward, rows counted from the shard's first token.
template <class T>
struct PairOperands {
  Rows<T> q, k, dq, dk;
  int64_t key_dim;
  T scale;
};

/// Kinds of one lane. Matrices of pairs have rows kStateChunk apart.
template <class T>
class ScalarPairs {
 public:
  ScalarPairs(Slab& slab, int64_t) : decay_(slab.take<T>(kStateChunk)) {}

  void scores(const ChunkDecays<T>& decays, const Chunk& chunk, const Rows<T>& q, const Rows<T>& k,
              int64_t key_dim, T scale, T* scores);

  /// From `products` = dout v^T of the chunk: scores, and the parts of dq, dk (written) and of the
  /// gradient of the decays (added, unless null) that stay inside the chunk. `products` is used up.
  void gradients(const ChunkDecays<T>& decays, const Chunk& chunk, const PairOperands<T>& operands,
                 T* scores, T* products, Crossings<T>* crossings);

 private:
  T* decay_;  // [count]
};

/// The vector kind, in blocks of kBlock tokens. A block against the tokens before it is a matrix
/// product of q o decay(from the block's start) and k o decay(to the block's start), neither of
/// which grows; inside a block every pair takes its own decays.
template <class T>
class VectorPairs {
 public:
  VectorPairs(Slab& slab, int64_t key_dim);

  void scores(const ChunkDecays<T>& decays, const Chunk& chunk, const Rows<T>& q, const Rows<T>& k,
              int64_t key_dim, T scale, T* scores);
  void gradients(const ChunkDecays<T>& decays, const Chunk& chunk, const PairOperands<T>& operands,
                 T* scores, T* products, Crossings<T>* crossings);

  static constexpr int64_t kBlock = 16;

 private:
  /// Tokens [begin, end) of a chunk.
  struct Block {
    int64_t begin, end;
  };

  void load_block(const ChunkDecays<T>& decays, const Chunk& chunk, const Rows<T>& q,
                  const Rows<T>& k, int64_t key_dim, Block block);
  void score_before(Block block, int64_t key_dim, T scale, T* scores) const;
  void gradients_before(Block block, const Chunk& chunk, const PairOperands<T>& operands,
                        const T* products);
  void gradients_inside(const ChunkDecays<T>& decays, Block block, const Chunk& chunk,
                        const PairOperands<T>& operands, T* scores, const T* products);
  void cross(const ChunkDecays<T>& decays, const Chunk& chunk, const PairOperands<T>& operands,
             Crossings<T>& crossings) const;

  T* q_decay_;    // [kBlock, K]: from the block's start
  T* k_decay_;    // [kStateChunk, K]: to the block's start
  T* decayed_q_;  // [kBlock, K]
  T* decayed_k_;  // [kStateChunk, K]
  T* part_;       // [kStateChunk, K]
  T* pair_;       // [K]
};

}  // namespace weft::cpu
