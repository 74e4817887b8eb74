package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// version is set when the agent is built: -ldflags "-X main.version=…".
var version = "unknown"

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the agent's version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version)
			return err //nolint:wrapcheck // says what could not be written
		},
	}
}
