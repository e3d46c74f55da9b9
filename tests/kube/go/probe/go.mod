module viaduct.dev/tests/kube/probe

go 1.26.0
