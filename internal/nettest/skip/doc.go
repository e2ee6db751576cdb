// Package skip skips tests that cannot run on a machine. It imports nothing of ours.
package skip
