// Package flagvalue has the values of flags that several commands share. Each checks what it is given at once, so that the
// error names the flag, and is a pflag.Value.
package flagvalue
