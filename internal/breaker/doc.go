// Package breaker is a circuit breaker: after several failures in a row it says for a while that something need not be
// tried, and then has it tried once more.
package breaker
