// Package breaker is a circuit breaker: after several failures in a row it is open for a pause, during which its user makes no
// attempts. After the pause one attempt decides whether it closes or opens again.
package breaker
