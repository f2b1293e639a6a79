;; A component with two memories; otherwise it keeps the contract.
(module
  (memory (export "memory") 2)
  (memory $second 1)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
  (func (export "eadem:transform/transform@0.1.0#describe") (result i32)
    (drop (i32.load $second (i32.const 0)))
    i32.const 1024)
  (func (export "eadem:transform/transform@0.1.0#apply") (param i32 i32 i32) (result i32) unreachable))
