// Package flagvalue contains the types of flags that several commands share. Each implements pflag.Value and checks its argument in
// Set, so that the error message names the flag.
//
// Of this project it imports the root package, and only commands import it.
package flagvalue
