package commandline

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/redact"
)

// WarnOfVisibleCredentials says that a password was given on the command line, where every user of the machine can read it.
func WarnOfVisibleCredentials(cmd *cobra.Command, warn func(message string)) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if value := f.Value.String(); redact.Text(value) != value && strings.HasPrefix(Given(f), "--"+f.Name) && !strings.Contains(Given(f), "environment") {
			warn(fmt.Sprintf("credential visible in the list of processes: --%s; use the environment variable %s or a file instead", f.Name, Variable(f.Name)))
		}
	})
}
