import com.amazonaws.services.dynamodbv2.local.main.ServerRunner;
import com.amazonaws.services.dynamodbv2.local.shared.access.LocalDBAccess;
import com.amazonaws.services.dynamodbv2.local.shared.jobs.JobsRegister;
import com.amazonaws.services.dynamodbv2.local.shared.jobs.ShardRolloverJob;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.lang.reflect.Field;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.eclipse.jetty.server.Connector;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;

/**
 * Runs DynamoDB Local for tests: on loopback only, with a second port where POST /roll closes every open shard and opens
 * its child, and no longer than the process at the other end of standard input.
 *
 * <p>Arguments: the control port, then those of DynamoDB Local.
 */
public class Loopback {
  public static void main(String[] arguments) throws Exception {
    int control = Integer.parseInt(arguments[0]);
    String[] others = java.util.Arrays.copyOfRange(arguments, 1, arguments.length);
    Object local = ServerRunner.createServerFromCommandLineArgs(others);
    for (Connector connector : ((Server) inside(local, "server")).getConnectors()) {
      ((ServerConnector) connector).setHost("127.0.0.1"); // it would listen on every interface
    }
    local.getClass().getMethod("start").invoke(local);
    listen(control, local);
    endWithStandardInput();
  }

  static void listen(int port, Object local) throws IOException {
    HttpServer control = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), port), 0);
    control.createContext("/roll", exchange -> answer(exchange, local));
    control.start();
  }

  static void answer(HttpExchange exchange, Object local) throws IOException {
    int status = 204;
    try {
      roll(local);
    } catch (Exception e) {
      e.printStackTrace();
      status = 500;
    }
    exchange.sendResponseHeaders(status, -1);
    exchange.close();
  }

  /** Runs the job that DynamoDB Local has for this, which it would only run every four hours. */
  static synchronized void roll(Object local) throws Exception {
    Object requests = inside(inside(local, "serverHandler"), "primaryHandler");
    for (Object database : ((Map<?, ?>) inside(requests, "dbRequestHandlers")).values()) {
      JobsRegister jobs = (JobsRegister) inside(database, "jobs");
      LocalDBAccess access = (LocalDBAccess) inside(database, "dbAccess");
      jobs.schedule(new ShardRolloverJob(access, jobs, 0)).get(30, TimeUnit.SECONDS);
    }
  }

  static void endWithStandardInput() throws IOException {
    while (System.in.read() >= 0) {}
    Runtime.getRuntime().halt(0);
  }

  /** A private field, wherever in the class's ancestry it is declared. */
  static Object inside(Object owner, String name) throws ReflectiveOperationException {
    for (Class<?> c = owner.getClass(); c != null; c = c.getSuperclass()) {
      for (Field field : c.getDeclaredFields()) {
        if (field.getName().equals(name)) {
          field.setAccessible(true);
          return field.get(owner);
        }
      }
    }
    throw new NoSuchFieldException(owner.getClass() + "." + name);
  }
}
