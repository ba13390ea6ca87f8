// Shows the description with Swagger UI, in the colours of the system. The page may be served below a path of a
// proxy's, so that the calls that it tries out go there as well.

const dark = matchMedia("(prefers-color-scheme: dark)");
const take = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", take);
take();

const viewer = document.getElementById("viewer");
try {
  const response = await fetch("docs/openapi.json");
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
  const spec = await response.json();
  spec.servers[0].url = new URL(".", location.href).pathname.replace(/\/$/, "") || "/";
  SwaggerUIBundle({
    spec, domNode: viewer, deepLinking: true, docExpansion: "list", defaultModelsExpandDepth: 0, validatorUrl: null,
    syntaxHighlight: { activated: true }, tryItOutEnabled: false,
  });
} catch (error) {
  viewer.textContent = `The description could not be loaded: ${error.message}`;
}
