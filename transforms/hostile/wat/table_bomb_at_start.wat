;; A component that wants a table of ten million entries before it does anything.
(module
  (memory (export "memory") 1)
  (table 10000000 funcref)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
  (func (export "eadem:transform/transform@0.1.0#describe") (result i32) i32.const 1024)
  (func (export "eadem:transform/transform@0.1.0#apply") (param i32 i32 i32) (result i32) unreachable))
