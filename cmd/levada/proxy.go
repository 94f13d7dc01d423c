package main

import (
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/proxy/command"
	"github.com/levada-io/levada/internal/proxy/discovery/kubernetes"
)

func newProxyCommand() *cobra.Command {
	return command.New(command.Options{Name: "levada proxy", Version: version, Kubernetes: kubernetes.New})
}
