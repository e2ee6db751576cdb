// Package sandbox runs sandboxes, from a plan to a running sandbox and back.
package sandbox
