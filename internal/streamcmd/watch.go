package streamcmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/stream/podwatch"
)

type watchFlags struct {
	store                                              connect.StoreFlags
	notifier                                           connect.NotifierFlags
	log                                                commandline.LogFlags
	namespace, selector, kubeconfig, kubeContext, http string
	shared                                             bool
}

func newWatchCommand(version string) *cobra.Command {
	var f watchFlags
	cmd := &cobra.Command{
		Use: "watch", Short: "Tell the job store of workers that Kubernetes knows to be dead", Args: cobra.NoArgs,
		Long: `Watch the pods of a namespace, and end the leases of workers that have died: their jobs are taken over within a second or two instead of when the
lease ends. Nothing depends on it, and any number of replicas may run. It needs get, list and watch for pods in the namespace.

Outside a cluster it uses the kubeconfig, as kubectl does.`,
		Example: `  levada stream watch --store postgres://localhost/shop --namespace shop --selector app=orders-worker`,
		RunE:    func(cmd *cobra.Command, _ []string) (err error) { return f.run(cmd, version) },
	}
	flags := cmd.Flags()
	f.store.Register(flags)
	f.notifier.Register(flags)
	flags.StringVarP(&f.namespace, "namespace", "n", "", "namespace of the workers (default: this pod's, or the kubeconfig's)")
	flags.StringVarP(&f.selector, "selector", "l", "", "only pods with these labels, as in kubectl get -l")
	flags.BoolVar(&f.shared, "shared-store", false, "workers of other namespaces use the same store")
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig file (default: in a pod its service account, else as kubectl)")
	flags.StringVar(&f.kubeContext, "context", "", "context of the kubeconfig")
	flags.StringVar(&f.http, "metrics-listen", ":8080", "address of metrics and probes; empty: none")
	f.log.Register(flags)
	return cmd
}

func (f *watchFlags) run(cmd *cobra.Command, version string) (err error) {
	log, err := f.log.Logger(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	config, found, err := kubernetesConfig(f.kubeconfig, f.kubeContext)
	if err != nil {
		return err
	}
	namespace := cmp.Or(f.namespace, found)
	pods, err := podwatch.NewPods(config, namespace)
	if err != nil {
		return fmt.Errorf("kubernetes: %w", err)
	}
	d, err := f.store.Open(cmd.Context(), false)
	if err != nil {
		return err
	}
	defer d.Closing(&err)
	notifier, closeNotifier, err := f.notifier.Open(cmd.Context(), d, log)
	if err != nil {
		return err
	}
	defer closeNotifier()
	registry := newRegistry(version)
	options := podwatch.Options{Namespace: namespace, Selector: f.selector, SharedStore: f.shared, Notifier: notifier, Logger: log, OnEnded: countEnded(registry)}
	watcher, err := podwatch.New(pods, d, options)
	if err != nil {
		return commandline.UsageError(err)
	}
	web := probes{registry: registry, log: log, ready: func(context.Context) error { return watcher.Health() }}
	address, stopWeb, err := web.serve(f.http)
	if err != nil {
		return err
	}
	defer stopWeb()
	log.Info("watching pods", "namespace", namespace, "selector", f.selector, "metrics", address)
	return watcher.Run(cmd.Context())
}

// countEnded returns what counts owners and leases that were ended, in metrics that it registers.
func countEnded(registry *prometheus.Registry) func(podwatch.EndedOwner) {
	deaths := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "levada_stream_watch_deaths_total", Help: "Owners whose leases were ended, by the sign of their death and Kubernetes' reason."}, []string{"cause", "reason"})
	expired := prometheus.NewCounter(prometheus.CounterOpts{Name: "levada_stream_watch_leases_total", Help: "Leases that were ended."})
	registry.MustRegister(deaths, expired)
	return func(owner podwatch.EndedOwner) {
		deaths.WithLabelValues(string(owner.Cause), owner.Reason).Inc()
		expired.Add(float64(owner.Expired))
	}
}

// namespaceFile is where a pod finds the name of its namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// kubernetesConfig uses the pod's service account unless a kubeconfig is asked for, and returns the namespace that goes with it.
func kubernetesConfig(kubeconfig, kubeContext string) (*rest.Config, string, error) {
	if kubeconfig == "" && kubeContext == "" {
		config, err := rest.InClusterConfig()
		if err == nil {
			namespace, err := os.ReadFile(namespaceFile)
			if err != nil {
				return nil, "", fmt.Errorf("this pod's namespace: %w; name one with --namespace", err)
			}
			return config, strings.TrimSpace(string(namespace)), nil
		}
		if !errors.Is(err, rest.ErrNotInCluster) {
			return nil, "", fmt.Errorf("kubernetes: %w", err)
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: kubeContext})
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, "", commandline.Usagef("kubernetes: neither in a pod nor a usable kubeconfig (--kubeconfig, KUBECONFIG, ~/.kube/config): %w", err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, "", fmt.Errorf("kubernetes: %w", err)
	}
	return config, namespace, nil
}
