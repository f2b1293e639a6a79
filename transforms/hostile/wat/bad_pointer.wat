;; A component whose description lies outside of its memory.
(module
  (memory (export "memory") 1)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
  (func (export "eadem:transform/transform@0.1.0#describe") (result i32) i32.const 0x7ffffff0)
  (func (export "eadem:transform/transform@0.1.0#apply") (param i32 i32 i32) (result i32) unreachable))
