// Package procnet reads what listens in a network namespace from /proc/PID/net, as one who follows it needs it.
package procnet
