package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/dataplane/function/builtin"
)

func newBuiltinsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "builtins", Short: "List the functions that are built in, and the images that they stand in for", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, d := range builtin.List() {
				fmt.Fprintln(w, d)
			}
			return w.Flush()
		},
	}
}
