//go:build tools

// Package tools names the end-to-end suite, which is no command that go.mod's `tool` could list.
package tools

import _ "k8s.io/kubernetes/test/e2e"
