package commandline

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// Build says what a program was built from. Empty fields are unknown.
type Build struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	// Time is when the commit was made, in RFC 3339.
	Time string `json:"time,omitempty"`
	// Modified says that the working tree had changes that are not in the commit.
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// ReadBuild reads the build from the binary. linked is the version that the linker set; without one, the version is that of the module if the program was
// installed with `go install MODULE@VERSION`, and otherwise "dev".
func ReadBuild(linked string) Build {
	b := Build{Version: linked, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	// Builds in a checkout have a pseudo-version there, which says less than the commit.
	if v := info.Main.Version; (b.Version == "" || b.Version == "dev") && v != "" && v != "(devel)" && b.Commit == "" {
		b.Version = v
	}
	return b
}

// Contract is an interface to other programs, with the version of it that this program speaks.
type Contract struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// NewVersionCommand prints the build and the contracts.
func NewVersionCommand(linked string, contracts []Contract) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version, the commit, and the versions of the contracts", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := ReadBuild(linked)
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(struct {
					Build
					Contracts []Contract `json:"contracts,omitempty"`
				}{b, contracts})
			}
			return printVersion(cmd.OutOrStdout(), cmd.Root().Name(), b, contracts)
		},
	}
	Output(cmd.Flags(), &output, "text", "json")
	return cmd
}

func printVersion(out io.Writer, program string, b Build, contracts []Contract) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	commit := b.Commit
	if commit == "" {
		commit = "unknown"
	}
	if b.Modified {
		commit += " (modified)"
	}
	fmt.Fprintf(w, "%s\t%s\n", program, b.Version)
	fmt.Fprintf(w, "commit\t%s\n", commit)
	if b.Time != "" {
		fmt.Fprintf(w, "committed\t%s\n", b.Time)
	}
	fmt.Fprintf(w, "go\t%s\nplatform\t%s\n", b.Go, b.Platform)
	for _, c := range contracts {
		fmt.Fprintf(w, "%s\t%s\n", c.Name, c.Version)
	}
	return w.Flush()
}
