package controllers

import "github.com/tarlift/tarlift/internal/reason"

// Classify returns an error's reason, and whether it is terminal, as package reason has them.
func Classify(err error) (name string, terminal bool) { return reason.Classify(err) }

// stalls reports whether every error of this reason is terminal.
func stalls(name string) bool { return reason.IsTerminal(name) }
