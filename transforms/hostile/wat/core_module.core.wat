;; A core module that is not wrapped as a component.
(module
  (memory (export "memory") 1)
  (func (export "apply") (param i32) (result i32) local.get 0))
