package pipelinecmd

import (
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/manifest"
)

func newRenderCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "render FILE|DIR|-...",
		Short: "Print manifests with all their defaults filled in",
		Long: `Print manifests as YAML with all their defaults filled in, in a stable order, so that two of them can be compared.

Problems go to the standard error output. With an error nothing is printed, and the exit code is 1.`,
		Example: "  levada render pipeline.yaml",
		Args:    atLeastOneArgument,
		RunE: func(cmd *cobra.Command, args []string) error {
			m := loadManifests(args, cmd.InOrStdin())
			problems := append(m.problems, manifest.Validate(m.objects)...)
			if problems.HasErrors() {
				problems.Sort()
				if err := writeText(cmd.ErrOrStderr(), problemPage{problems: problems, manifests: len(m.objects)}); err != nil {
					return err
				}
				return commandline.Problems()
			}
			for _, o := range m.objects {
				v1alpha1.SetDefaults(o.Manifest)
			}
			text, err := manifest.Render(m.objects)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	return cmd
}
